# WebP::webpdemux: of libwebp's own package where there is one (vcpkg, conda), else by its header and its libraries (Debian).
if(NOT TARGET WebP::webpdemux)
  find_package(WebP CONFIG QUIET)
endif()
if(NOT TARGET WebP::webpdemux)
  find_path(SIT_DEPLOY_WEBP_INCLUDE webp/demux.h)
  find_library(SIT_DEPLOY_WEBP_LIBRARY webp)
  find_library(SIT_DEPLOY_WEBPDEMUX_LIBRARY webpdemux)
  if(SIT_DEPLOY_WEBP_INCLUDE AND SIT_DEPLOY_WEBP_LIBRARY AND SIT_DEPLOY_WEBPDEMUX_LIBRARY)
    add_library(WebP::webpdemux UNKNOWN IMPORTED)
    set_target_properties(WebP::webpdemux PROPERTIES IMPORTED_LOCATION "${SIT_DEPLOY_WEBPDEMUX_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${SIT_DEPLOY_WEBP_INCLUDE}" INTERFACE_LINK_LIBRARIES "${SIT_DEPLOY_WEBP_LIBRARY}")
  endif()
endif()
